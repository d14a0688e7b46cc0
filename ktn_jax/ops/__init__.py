"""Pure, static-shaped array functions of detection and dense correspondence."""
