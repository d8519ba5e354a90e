"""`serve render`: write the RayService or the systemd unit of a service.

Imports `operate.host`, and the layers from `runtime` down.
"""
