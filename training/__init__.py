"""The offline path of tabrank: from a log to a published artifact."""
