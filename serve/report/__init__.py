"""Pages, tables and plots of the reports of every command; `training` and `loadtest` import it too.

Imports nothing of the project.
"""
