"""Series derived from other series of the lake. Downloads do not belong here."""
