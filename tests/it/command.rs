//! Commands: quoting, environment, streams, timeouts, signals, process groups.
