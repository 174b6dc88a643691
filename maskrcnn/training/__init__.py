"""Lightning: the module, the schedules and the callbacks."""
