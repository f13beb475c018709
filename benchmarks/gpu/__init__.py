"""The GPU report: parts that each run in a process of their own and write what they measure at once."""
