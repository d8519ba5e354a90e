"""What other tools take, written from `cluster.yaml`: Ray's launcher file for machines, a RayService for Kubernetes."""
