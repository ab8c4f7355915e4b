-- Count an image that lies in the store: once, and only for the attempt that holds the lease.
-- ARGV: now, job, index, attempt, worker, node, gpu time in ms, render time in ms
-- Returns 'counted' | 'repeated' | 'stale' | 'cancelled'
local at, job, index, worker, node = now(), ARGV[2], tonumber(ARGV[3]), ARGV[5], ARGV[6]
local gpu_ms, render_ms = tonumber(ARGV[7]), tonumber(ARGV[8])
local member, key = member_of(job, ARGV[3]), job_key(job)
if redis.call('GETBIT', key .. ':stored', index) == 1 then return 'repeated' end
local attempt, holder = flight_of(member)
if attempt ~= tonumber(ARGV[4]) or holder ~= worker then return 'stale' end
local model = redis.call('HGET', key, 'model')
land(member, model)
if is_cancelled(job) then return 'cancelled' end

redis.call('SETBIT', key .. ':stored', index, 1)
-- Ten bytes per stored image: when (0.1 s since the job was created), how long, how much device time (ms).
local created = tonumber(redis.call('HGET', key, 'created_at'))
redis.call('SETRANGE', key .. ':times', index * 10, struct.pack('>I4I3I3',
  math.floor((at - created) * 10), math.min(render_ms, 16777215), math.min(gpu_ms, 16777215)))
redis.call('HINCRBY', key, 'stored', 1)
redis.call('HINCRBY', key, 'gpu_ms', gpu_ms)
finish_if_settled(job, at)
count(at, 'm|' .. model .. '|images', 1)
count(at, 'm|' .. model .. '|gpu_ms', gpu_ms)
count(at, 'w|' .. node .. '|images', 1)
count(at, 'w|' .. node .. '|gpu_ms', gpu_ms)
redis.call('HINCRBY', P .. 'images', model, 1)
return 'counted'
