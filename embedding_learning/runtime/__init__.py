"""The platform: MXNet on current Pythons, devices, signals, atomic files, file locks, progress."""
