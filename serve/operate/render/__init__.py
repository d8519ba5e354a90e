"""`serve render`: the launcher file and the RayService. Imports `operate.host`."""
