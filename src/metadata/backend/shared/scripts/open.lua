-- Opens the store for one server. A store that is empty, or another process than the one that had the epoch, gets a new one.
-- KEYS: meta, settings, log
-- ARGV: run id of the store's process, epoch to take if a new one is needed, "adopt" | "keep", then name and value of each
--       setting
local meta, settings, log = KEYS[1], KEYS[2], KEYS[3]
local epoch = redis.call('HGET', meta, 'epoch')
if not epoch or redis.call('HGET', meta, 'run') ~= ARGV[1] then
  epoch = ARGV[2]
  redis.call('HSET', meta, 'run', ARGV[1], 'epoch', epoch)
  -- The log outlives a count that was lost alone, and takes no number that it has had.
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local had = last and tonumber(string.match(last[1], '^%d+')) or 0
  local count = tonumber(redis.call('HGET', meta, 'count') or 0)
  redis.call('HSET', meta, 'count', string.format('%.0f', math.max(had, count)))
end
if ARGV[3] == 'adopt' then
  redis.call('DEL', settings)
end
if redis.call('EXISTS', settings) == 0 then
  redis.call('HSET', settings, unpack(ARGV, 4))
end
return { epoch, redis.call('HGETALL', settings) }
