# sampler: see PLAN.md
