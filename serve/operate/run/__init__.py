"""`serve up` and `serve down`: one supervised local cluster. Imports `operate.status` and below."""
