"""Losses: functions of outputs and targets, without modules, parameters or configurations."""
