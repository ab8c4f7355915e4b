"""HTTP: accept, answer, report. Never imports worker or torch."""
