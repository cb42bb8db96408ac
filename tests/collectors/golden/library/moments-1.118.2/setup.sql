INSERT INTO assets (id, type, "createdAt", "isVisible", "isArchived", "isOffline", "isExternal", "deletedAt", thumbhash, "encodedVideoPath") VALUES
  ('00000000-0000-0000-0000-000000000001', 'IMAGE', to_timestamp(1000), true, false, false, false, NULL, '\x01', NULL),
  ('00000000-0000-0000-0000-000000000002', 'IMAGE', to_timestamp(2000), true, false, false, false, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000003', 'IMAGE', to_timestamp(3000), true, false, false, false, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000004', 'VIDEO', to_timestamp(4000), true, false, false, false, NULL, '\x01', ''),
  ('00000000-0000-0000-0000-000000000005', 'IMAGE', to_timestamp(5000), true, false, false, false, NULL, '\x01', NULL),
  ('00000000-0000-0000-0000-000000000006', 'VIDEO', to_timestamp(6000), false, false, false, false, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000007', 'IMAGE', to_timestamp(7000), true, true, false, false, NULL, '\x01', NULL),
  ('00000000-0000-0000-0000-000000000008', 'IMAGE', to_timestamp(8000), true, false, false, false, now(), '\x01', NULL),
  ('00000000-0000-0000-0000-000000000009', 'IMAGE', to_timestamp(9000), true, false, true, true, now(), '\x01', NULL),
  ('00000000-0000-0000-0000-000000000010', 'IMAGE', to_timestamp(10000), true, false, true, true, NULL, '\x01', NULL),
  ('00000000-0000-0000-0000-000000000011', 'IMAGE', to_timestamp(11000), true, false, false, false, NULL, '\x01', NULL);
INSERT INTO asset_files (id, "assetId", type) VALUES
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000004', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000004', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000007', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000007', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000008', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000008', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000009', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000009', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000010', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000010', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000011', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000011', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000005', 'thumbnail');
INSERT INTO asset_job_status ("assetId", "metadataExtractedAt", "facesRecognizedAt", "duplicatesDetectedAt", "previewAt", "thumbnailAt") VALUES
  ('00000000-0000-0000-0000-000000000001', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000002', now(), NULL, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000004', now(), NULL, NULL, now(), now()),
  ('00000000-0000-0000-0000-000000000005', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000007', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000008', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000009', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000010', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000011', now(), now(), now(), NULL, now());
INSERT INTO smart_search ("assetId") VALUES ('00000000-0000-0000-0000-000000000001'), ('00000000-0000-0000-0000-000000000005'), ('00000000-0000-0000-0000-000000000007'), ('00000000-0000-0000-0000-000000000008'), ('00000000-0000-0000-0000-000000000009'), ('00000000-0000-0000-0000-000000000010'), ('00000000-0000-0000-0000-000000000011');
INSERT INTO users (id, "deletedAt") VALUES (gen_random_uuid(), NULL), (gen_random_uuid(), NULL), (gen_random_uuid(), now());
INSERT INTO migrations (id) SELECT generate_series(1, 171);
