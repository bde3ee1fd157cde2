"""Parts of bench/forecast_skill.py: recordings as outlets, the deployed pipeline over them, scores, the yardstick, a picture."""
