# snmp: see PLAN.md
