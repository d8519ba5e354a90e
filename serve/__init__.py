"""The request path of tabrank, and the contract between training and serving."""
