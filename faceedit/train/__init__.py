"""Training and measuring: how every shipped weight is made. Nothing outside this package imports it."""
