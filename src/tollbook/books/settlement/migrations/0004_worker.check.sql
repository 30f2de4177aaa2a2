SELECT network, told_at, limits FROM settlement.network_limits LIMIT 0;
SELECT reverts FROM settlement.settlement_commands LIMIT 0;
