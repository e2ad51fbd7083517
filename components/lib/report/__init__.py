"""Reports: training curves and their verdicts, charts, pictures, one self-contained page."""
