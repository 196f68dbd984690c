"""Files of examples of a task: texts with a target, read whole and kept in memory."""
