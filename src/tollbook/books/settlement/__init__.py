"""The settlement book: commands in, money moved on a chain, and a word to everyone who asked.

A command says who is paid, in which asset, how much. Its words: it is *received*, *validated* (we could pay
it), *executed* (its transaction is handed to core/lanes: nothing can be taken back), and *settled* (the chain
shows it, deep enough); or it ends as *refused*, *failed*, *expired* or *cancelled*.

Tables, in schema settlement: settlement_commands, command_moves (its history), spending (for the limits).
Every move is told in core.journal by a trigger: book "settlement", the subject is the command's id.
"""
