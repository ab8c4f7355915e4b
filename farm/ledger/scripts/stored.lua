-- Count an image that lies in the store: once, and only for the attempt that holds the lease.
-- ARGV: now, job, index, attempt, worker, node, gpu time in ms, render time in ms, reused ('1' or '0')
-- Returns 'counted' | 'repeated' | 'stale' | 'cancelled'
local at, job, index, worker, node = now(), ARGV[2], tonumber(ARGV[3]), ARGV[5], ARGV[6]
local gpu_ms, render_ms = tonumber(ARGV[7]), tonumber(ARGV[8])
local member, key = member_of(job, ARGV[3]), job_key(job)
if redis.call('GETBIT', key .. ':stored', index) == 1 then return 'repeated' end
local attempt, holder = flight_of(member)
if attempt ~= tonumber(ARGV[4]) or holder ~= worker then return 'stale' end
local facts = facts_of(job)
land(member, facts)
if is_unwanted(job, index, facts) then return 'cancelled' end

-- A node's number, so that two bytes tell who made an image.
local node_number = redis.call('HGET', P .. 'nodes', node)
if not node_number then
  node_number = redis.call('HLEN', P .. 'nodes') + 1
  redis.call('HSET', P .. 'nodes', node, node_number)
end
redis.call('SETBIT', key .. ':stored', index, 1)
-- Twelve bytes per stored image: when (0.1 s since the job was created), how long, how much device time (ms), where.
local created = tonumber(redis.call('HGET', key, 'created_at'))
redis.call('SETRANGE', key .. ':times', index * 12, struct.pack('>I4I3I3I2',
  math.floor(math.max(0, at - created) * 10), math.min(render_ms, 16777215), math.min(gpu_ms, 16777215),
  math.min(tonumber(node_number), 65535)))
redis.call('HINCRBY', key, 'stored', 1)
redis.call('HINCRBY', key, 'gpu_ms', gpu_ms)
if ARGV[9] == '1' then redis.call('HINCRBY', key, 'reused', 1) end
note_end(job, index, STORED)
tell_of_change(job)
settle_if_last(job, at)

local tenant = tenant_key(facts.tenant)
redis.call('HINCRBYFLOAT', tenant, 'vtime', gpu_ms / number(redis.call('HGET', tenant, 'weight') or 1))
redis.call('HINCRBY', tenant, 'gpu_ms', gpu_ms)
redis.call('HINCRBY', tenant, 'images', 1)
redis.call('HINCRBY', P .. 'images', facts.model, 1)
redis.call('HINCRBY', P .. 'gpu_ms', facts.model, gpu_ms)
count(at, {
  ['m|' .. facts.model .. '|images'] = 1,
  ['m|' .. facts.model .. '|gpu_ms'] = gpu_ms,
  ['w|' .. node .. '|images'] = 1,
  ['w|' .. node .. '|gpu_ms'] = gpu_ms,
})
return 'counted'
