"""What a run shows: metrics, report, figures, films."""
