-- The schema stays: the webhooks' tables are in it.
DROP TABLE settlement.spending;
DROP TABLE settlement.command_moves;
DROP TABLE settlement.settlement_commands;
DROP FUNCTION settlement.begin_command();
DROP FUNCTION settlement.tell_received();
DROP FUNCTION settlement.check_step();
DROP FUNCTION settlement.refuse_command_change();
DROP FUNCTION settlement.tell_move();
DROP FUNCTION settlement.give_back();
