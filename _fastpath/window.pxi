# window: see PLAN.md
