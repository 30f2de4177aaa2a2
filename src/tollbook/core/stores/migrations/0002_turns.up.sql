-- Whose turn a channel is, by name: who was told its state and is expected back is not overtaken.
-- Nothing is lost with a turn, so none waits for the disk.
DROP TABLE stores.channel_turns;
CREATE UNLOGGED TABLE stores.channel_turns (
    channel_id text PRIMARY KEY,
    holder text NOT NULL,
    ends_at timestamptz NOT NULL
);
