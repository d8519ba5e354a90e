"""Which version ranks: trials, rollback and their history. Imports `config` and below."""
