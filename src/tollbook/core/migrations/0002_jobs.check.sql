SELECT id, queue_name, task_name, status, scheduled_at, attempts FROM jobs.procrastinate_jobs LIMIT 0;
SELECT id, task_name, defer_timestamp, job_id FROM jobs.procrastinate_periodic_defers LIMIT 0;
SELECT 1 / (to_regprocedure('jobs.procrastinate_fetch_job_v2(character varying[], bigint)') IS NOT NULL)::integer;
