DROP TABLE stores.channel_turns;
CREATE TABLE stores.channel_turns (
    channel_id text PRIMARY KEY,
    corrects boolean NOT NULL,
    ends_at timestamptz NOT NULL
);
