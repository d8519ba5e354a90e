"""`serve render`: write the RayService or the systemd unit of a service.

Imports `operate.host`, the rules of `operate.observe`, and the layers from `runtime` down.
"""
