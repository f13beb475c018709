"""Former name of `swinv2_mm.engine.autocast`."""
