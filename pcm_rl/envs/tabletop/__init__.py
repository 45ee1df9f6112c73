"""The toy tasks: a table, a gripper, and an object to reach or to put into a bin."""
