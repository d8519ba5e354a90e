"""Wire types and what every layer needs: errors, messages, names. Imports nothing above it."""
