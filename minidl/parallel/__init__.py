"""Many processes train as one."""
