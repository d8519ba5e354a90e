"""`serve render kubernetes`: write the RayService of a service, and the objects beside it.

Imports `operate.host`, `operate.plan` and the layers from `runtime` down, and reads the rules of
`operate.observe`.
"""
