"""What tabrank is measured against: the same ranking, as experts in other tools would serve it."""
