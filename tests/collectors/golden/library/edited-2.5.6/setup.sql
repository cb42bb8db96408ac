INSERT INTO asset (id, type, "createdAt", visibility, "isEdited", thumbhash) VALUES
  ('00000000-0000-0000-0000-000000000001', 'IMAGE', to_timestamp(1000), 'timeline', true, '\x01'),
  ('00000000-0000-0000-0000-000000000002', 'IMAGE', to_timestamp(2000), 'timeline', true, '\x01'),
  ('00000000-0000-0000-0000-000000000003', 'IMAGE', to_timestamp(3000), 'locked', false, '\x01'),
  ('00000000-0000-0000-0000-000000000004', 'IMAGE', to_timestamp(4000), 'timeline', false, '\x01');
INSERT INTO asset_file (id, "assetId", type, "isEdited") VALUES
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'preview', false), (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'preview', true),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'thumbnail', false), (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'thumbnail', true),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'fullsize', true), (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'sidecar', false),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'preview', false), (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'thumbnail', false),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'fullsize', false),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000003', 'preview', false), (gen_random_uuid(), '00000000-0000-0000-0000-000000000003', 'thumbnail', false),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000004', 'preview', false), (gen_random_uuid(), '00000000-0000-0000-0000-000000000004', 'thumbnail', false);
INSERT INTO asset_job_status ("assetId", "metadataExtractedAt") SELECT id, now() FROM asset WHERE id <> '00000000-0000-0000-0000-000000000004';
INSERT INTO smart_search ("assetId") SELECT id FROM asset;
INSERT INTO system_metadata (key, value) VALUES
  ('system-config', '{"machineLearning": {"ocr": {"enabled": false}, "duplicateDetection": {"enabled": true}}}');
