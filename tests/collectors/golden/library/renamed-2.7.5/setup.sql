ALTER TABLE smart_search RENAME TO embedding;
ALTER TABLE asset_job_status DROP COLUMN "facesRecognizedAt";
