"""What is put under load: our service, the rivals, the workspace. Imports `generator` and below, and `serve`."""
