"""The reproduction of the papers' claims: its configuration, tasks, plan and runner."""
