"""The networks: plain nn.Modules that know no Lightning and no logging; `weights` and `exported` alone know files."""
