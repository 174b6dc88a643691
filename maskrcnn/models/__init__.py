"""The networks: plain nn.Modules that know no Lightning, no files and no logging."""
