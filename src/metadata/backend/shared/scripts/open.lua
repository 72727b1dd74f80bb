-- Opens the store for one server. A store that is empty, or another process than the one that had the epoch, gets a new one.
-- KEYS: meta, settings
-- ARGV: run id of the store's process, epoch to take if a new one is needed, "adopt" | "keep", then name and value of each
--       setting
local meta, settings = KEYS[1], KEYS[2]
local epoch = redis.call('HGET', meta, 'epoch')
if not epoch or redis.call('HGET', meta, 'run') ~= ARGV[1] then
  epoch = ARGV[2]
  redis.call('HSET', meta, 'run', ARGV[1], 'epoch', epoch)
  redis.call('HINCRBY', meta, 'count', 0)
end
if ARGV[3] == 'adopt' then
  redis.call('DEL', settings)
end
if redis.call('EXISTS', settings) == 0 then
  redis.call('HSET', settings, unpack(ARGV, 4))
end
return { epoch, redis.call('HGETALL', settings) }
