"""How a file differs from what runs, and what a deploy of it does. Imports `operate.host`."""
