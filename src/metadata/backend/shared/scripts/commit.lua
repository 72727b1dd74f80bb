-- Puts one change of one node into the store if the node's last change is the expected one.
-- KEYS: meta, nodes, log, held by the node
-- ARGV: epoch, node, expected version, "renew" | "keep" | "forget", node's record, log entry, "replace" | "amend",
--       number of artifacts to remove, these, then artifact and record of each that is held
local meta, nodes, log, held = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node, mode = ARGV[2], ARGV[4]
if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then
  return { 'epoch' }
end
local head = redis.call('HGET', nodes, node)
local known = head and string.sub(head, 1, 16) or '0000000000000000'
if known ~= ARGV[3] then
  return { 'conflict', known }
end
local time = redis.call('TIME')
local now = string.format('%016.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local count = redis.call('HINCRBY', meta, 'count', 1)
local version = string.format('%016.0f', count)
if mode == 'forget' then
  redis.call('HDEL', nodes, node)
else
  local renewed = mode == 'renew' and now or string.sub(head, 17, 32)
  redis.call('HSET', nodes, node, version .. renewed .. ARGV[5])
end
if ARGV[7] == 'replace' then
  redis.call('UNLINK', held)
end
local first = 9 + tonumber(ARGV[8])
for at = 9, first - 1 do
  redis.call('HDEL', held, ARGV[at])
end
for at = first, #ARGV, 1000 do
  redis.call('HSET', held, unpack(ARGV, at, math.min(at + 999, #ARGV)))
end
redis.call('XADD', log, 'MAXLEN', '~', 10000, string.format('%.0f-0', count), 'node', node, 'at', now, 'entry', ARGV[6])
return { 'done', version }
