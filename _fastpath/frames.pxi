# frames: see PLAN.md
