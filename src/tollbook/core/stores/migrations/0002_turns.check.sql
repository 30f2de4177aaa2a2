SELECT channel_id, holder, ends_at FROM stores.channel_turns LIMIT 0;
