"""`loadtest chaos`: one class a fault."""
