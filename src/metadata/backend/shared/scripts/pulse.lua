-- Tells where the store is, and keeps or takes the leadership for a while.
-- KEYS: meta, leader
-- ARGV: this server, milliseconds of leadership ("0" gives it up)
local leader = redis.call('GET', KEYS[2])
if ARGV[2] == '0' then
  if leader == ARGV[1] then
    redis.call('DEL', KEYS[2])
  end
elseif not leader or leader == ARGV[1] then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  leader = ARGV[1]
end
local time = redis.call('TIME')
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'count')
return { meta[1] or '', meta[2] or '0', time[1] * 1000 + math.floor(time[2] / 1000), leader == ARGV[1] and 1 or 0 }
